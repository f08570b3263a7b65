"""The web page, made with Gradio and mounted in the server."""
