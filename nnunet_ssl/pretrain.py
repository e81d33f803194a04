"""`python -m nnunet_ssl.pretrain`: nnUNetv2_pretrain for torchrun, which wants a module."""

from nnunet_ssl.cli.pretrain import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
