"""The pre-training trainers, one per pretext task; the backbone comes from the plans."""

from nnunet_ssl.trainers.ssl_trainer import SSLTrainer


class SSLMAETrainer(SSLTrainer):
    """Masked autoencoder."""

    method_name = "mae"


class SSLSpark3DTrainer(SSLTrainer):
    """Spark3D: masked autoencoder with a sparse encoder, for U-Nets."""

    method_name = "spark3d"


class SSLSimMIMTrainer(SSLTrainer):
    """SimMIM: masked image modelling with mask tokens in the encoder."""

    method_name = "simmim"


class SSLModelsGenesisTrainer(SSLTrainer):
    """Models Genesis: restoration of corrupted images."""

    method_name = "models_genesis"


class SSLVolumeFusionTrainer(SSLTrainer):
    """VolumeFusion: in which proportion two images were mixed."""

    method_name = "volume_fusion"


class SSLVoCoTrainer(SSLTrainer):
    """VoCo: the overlap of crops with a grid of crops."""

    method_name = "voco"


class SSLSwinUNETRTrainer(SSLTrainer):
    """SwinUNETR's tasks: rotation, contrast and inpainting."""

    method_name = "swin_unetr"


class SSLSimCLRTrainer(SSLTrainer):
    """SimCLR: contrast of overlapping crops."""

    method_name = "simclr"


class SSLConsistentViewsTrainer(SSLTrainer):
    """Masked autoencoding of two views that agree where they overlap."""

    method_name = "consistent_views"


class SSLSelfDistillationTrainer(SSLTrainer):
    """A student that sees masked crops, and a slower twin that sees them whole: SMIT, with iBOT's losses."""

    method_name = "self_distillation"
