"""rfp.cli"""
