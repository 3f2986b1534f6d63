"""Real orders through real processes while something breaks: nothing may be lost, nothing doubled."""
