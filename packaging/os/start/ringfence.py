"""Where the packaged program begins."""

from controller.cli import main

if __name__ == "__main__":
    main()
