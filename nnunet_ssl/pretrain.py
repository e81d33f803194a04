"""`python -m nnunet_ssl.pretrain`: nnUNetv2_pretrain for torchrun, which wants a module."""

import os

from nnunet_ssl.cli.pretrain import main

__all__ = ["main"]

if __name__ == "__main__":
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import record

        # torchrun shows the traceback of the first process that failed, if it is told: so no error may hide its own.
        os.environ.setdefault("NNUNET_SSL_TRACEBACK", "1")
        main = record(main)
    main()
