import sys

from stylegen.generate import main

sys.exit(main())
