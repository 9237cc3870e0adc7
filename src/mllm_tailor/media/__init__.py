"""Safe decoding of images, PDF pages, videos and recordings. No torch."""
