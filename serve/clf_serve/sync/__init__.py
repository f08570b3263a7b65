"""A gallery brought in line with a folder of images, once or for as long as it runs."""
