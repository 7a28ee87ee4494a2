"""What the losses over rows of logits share: the rows they read, and the scaling of a gradient's rows."""
