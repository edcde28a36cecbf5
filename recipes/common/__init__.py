"""What the other packages of the recipes share."""
