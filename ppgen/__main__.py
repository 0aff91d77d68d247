"""`python -m ppgen` is `ppgen`."""

from ppgen.cli import main

if __name__ == "__main__":
    main()
