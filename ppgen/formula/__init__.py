"""Regression by a formula: its text and a table become the constants of a program, which needs neither afterwards.

formula, family, table  ->  read.design  ->  Design, priors  ->  models/regression.py, or source.program
"""
