"""Where the time of a step goes, and how near each part is to what the machine can do.

node_kinds      which part of a step a node of the graph belongs to
profile         ONNX Runtime's own profile of a session, run by run
timed_model     a step model that notes when its runs begin and end
passes          the passes that are measured, and measuring them
work            operations and bytes of a pass, from the shapes of the model
measure         all of it together: Roofline
plot, page      the figure, and the page around it
"""

from dlm_edge.roofline.measure import Roofline, measure_roofline

__all__ = ["Roofline", "measure_roofline"]
