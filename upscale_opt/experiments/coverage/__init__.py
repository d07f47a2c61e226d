"""Coverage: which networks export losslessly, and how much of their masks is really removed."""
