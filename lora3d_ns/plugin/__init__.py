"""The only package that imports nerfstudio.

nerfstudio loads the entry points of every installed package outside any `try`, so whatever a method's or dataparser's
module imports, all ns-* commands pay for, and an ImportError in it breaks them all. Modules named by entry points
therefore import nothing of ours but light settings; everything else is imported when the method runs. The entry-point
name of the dataparser and the method's `method_name` are kept equal to the names users type (`lora3d`,
`lora3d-splat`).
"""
