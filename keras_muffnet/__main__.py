"""`python -m keras_muffnet` is the command `muffnet`."""

import sys

from keras_muffnet.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
