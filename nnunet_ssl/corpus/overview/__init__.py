"""What is in a heap of images: a page with numbers and pictures."""
