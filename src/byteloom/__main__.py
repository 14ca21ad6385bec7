"""`python -m byteloom` is the `byteloom` command."""

from byteloom.cli import main

if __name__ == "__main__":
    main()
