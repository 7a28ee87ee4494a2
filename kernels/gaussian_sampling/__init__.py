"""Cholesky factors of class covariances, and features drawn from the class Gaussians."""
