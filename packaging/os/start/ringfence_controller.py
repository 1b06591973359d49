"""Where the packaged program begins."""

from controller.main import main

if __name__ == "__main__":
    main()
