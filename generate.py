"""Write with a trained model. `python generate.py --help` lists the flags."""

import sys

from stylegen.generate import main

if __name__ == "__main__":
    sys.exit(main())
