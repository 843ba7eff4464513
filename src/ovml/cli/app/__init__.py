"""The web page: an image, any labels, a ranking, and where each label was found.

Its layout and its server need Gradio (`pip install 'ovml[app]'`).
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # Gradio reads it when it is imported
