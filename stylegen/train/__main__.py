import sys

from stylegen.train import main

sys.exit(main())
