"""What is looked at before a file is opened: nothing in it is run, imported or allocated."""
