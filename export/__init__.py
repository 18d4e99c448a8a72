"""rfp.export"""
