"""nnU-Net's trainers for pre-training and fine-tuning (nnunet_ssl.trainers)."""
