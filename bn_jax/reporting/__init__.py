"""Figures and tables of runs, made from their workdirs."""
