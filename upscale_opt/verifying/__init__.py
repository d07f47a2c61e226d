"""Comparisons of two models: do they compute the same?"""
