"""The Hugging Face Hub: addresses, downloads, known models, publishing."""
