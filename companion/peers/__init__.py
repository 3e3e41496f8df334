"""Other systems on the same split: SVMs, Parabel, Bonsai, PLT, XR-Linear, bare teachers, other
heads.
"""
