"""What all rooms of the recipes share."""
