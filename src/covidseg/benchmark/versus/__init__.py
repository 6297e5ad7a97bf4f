"""The suite `versus`: accuracy at equal time, on the same patients, cores and minutes, scored by one command.

Contenders: nnU-Net as it plans, nnU-Net with its plan at our voxel size, patch and multiply-adds, MONAI's DynUNet in a
plain loop, and this suite's recipe. Each trains in a process of its own, reads the same NIfTI files and writes masks on
the scans' own grids. What one has done is kept: the same command goes on.
"""
