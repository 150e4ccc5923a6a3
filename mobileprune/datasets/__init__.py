"""Data that ships inside the package: an embedded subset of Fashion-MNIST, its licence and the script that made it."""
