#!/bin/bash
# Preprocess one corpus on many machines at once, then train. Every task runs the same command: they share the images
# among themselves through files in nnUNet_preprocessed, so any number of tasks may start, end and be started again.
#
#   sbatch examples/cluster/preprocess_array.sh 745
#   sbatch --dependency=afterany:<id of that job> your_training_job.sh      # does what the array may have left undone
#
#SBATCH --job-name=preprocess
#SBATCH --array=0-15
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

DATASET=${1:?"number of the data set, e.g. sbatch $0 745"}
: "${nnUNet_raw:?}" "${nnUNet_preprocessed:?}" "${nnUNet_results:?}"  # on storage that all nodes see

# One thread in each of the processes; they are as many as there are cores.
export OMP_NUM_THREADS=1

# Without --preprocess-only the same command trains afterwards.
srun nnUNetv2_pretrain "$DATASET" --backbone resenc_l --normalization per_image --storage float16 \
    --preprocess-only -np "${SLURM_CPUS_PER_TASK:-8}"
