"""Run the command ``earlydrop`` as ``python -m earlydrop``, for launchers such as torchrun."""

from earlydrop.commands.run import main

if __name__ == "__main__":
    main()
