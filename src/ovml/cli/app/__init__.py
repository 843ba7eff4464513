"""The web page: a picture, any labels, a ranking, and where each label was found.

Its layout and its server need Gradio (`pip install 'ovml[app]'`).
"""

import os

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: it then tells nobody that it is used
