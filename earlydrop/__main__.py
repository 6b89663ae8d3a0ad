"""``python -m earlydrop`` is the command ``earlydrop``, for launchers such as torchrun."""

from earlydrop.commands.run import main

if __name__ == "__main__":
    main()
