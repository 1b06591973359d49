"""Where the packaged program begins."""

from agent.start import main

if __name__ == "__main__":
    main()
