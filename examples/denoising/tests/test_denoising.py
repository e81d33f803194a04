"""`pip install -e . nnunet_ssl[testing]`, then `pytest`: the contract that nnunet_ssl's own tasks pass."""

from nnunet_ssl.testing import contract_of

TestDenoising = contract_of("denoising")
