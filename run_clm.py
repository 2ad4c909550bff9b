"""Train or fine-tune a language model on your text. `python run_clm.py --help` lists the flags."""

import sys

from stylegen.train import main

if __name__ == "__main__":
    sys.exit(main())
