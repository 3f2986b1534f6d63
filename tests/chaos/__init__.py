"""Real orders through real processes while something breaks: nothing may be lost or doubled."""
