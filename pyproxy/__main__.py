import sys

from pyproxy.command import main

sys.exit(main())
