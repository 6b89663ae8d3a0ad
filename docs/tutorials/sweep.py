# %% [markdown]
# # A sweep and its report
#
# The trainer is the command `earlydrop`. One run takes seconds with a small model:

# %%
import os
import tempfile

os.chdir(tempfile.mkdtemp())
short = (
    "model=mlp trainer.steps=60 data.train_images=1000 trainer.batch_size=50 "
    "probe=none tracking=off"
)

# %% [markdown]
# ```bash
# earlydrop mode=plan ...    # what would run: sites, rates, cost; nothing is trained
# earlydrop ...              # one run
# ```

# %%
# !earlydrop mode=plan schedule=late {short}

# %% [markdown]
# With `-m`, values with commas become a sweep. Runs that differ only in their schedule are paired
# by their seed.

# %%
# !earlydrop -m schedule=none,early,constant seed=0,1,2 study=tutorial {short} 2>&1 | tail -n 25

# %% [markdown]
# Each run has a folder. The study has a report, `runs/tutorial/report.html`:

# %%
# !ls runs/tutorial

# %% [markdown]
# The same command again trains nothing: finished runs are skipped. A new value trains only what is
# new. `earlydrop list` shows what there is.

# %%
# !earlydrop list | tail -n 5

# %% [markdown]
# Citing: the BibTeX of the paper and the software, and the commands that repeat the runs.

# %%
# !earlydrop-cite runs/tutorial | tail -n 12
