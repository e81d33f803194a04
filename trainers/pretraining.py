"""The pre-training trainers, one per pretext task; the backbone comes from the plans."""

from nnunet_ssl.trainers.ssl_trainer import SSLTrainer


class SSLMAETrainer(SSLTrainer):
    """Masked autoencoder."""

    method_name = "mae"
