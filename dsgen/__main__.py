"""Run the command line as `python -m dsgen`, which is what torchrun starts."""

from dsgen.cli.app import main

if __name__ == "__main__":
    main()
