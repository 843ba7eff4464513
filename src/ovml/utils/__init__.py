"""What every room uses: errors, images, files, what is printed."""
