# %% [markdown]
# # Reading the findings
#
# The repository holds summaries of every run that the [findings](../findings.md) rest on. This
# page reads them.

# %%
import pandas as pd

from earlydrop.training.compose import results_folder

runs = pd.read_csv(results_folder() / "findings" / "runs.csv", low_memory=False)
print(len(runs), "runs of", runs["study"].nunique(), "studies")
print(runs.groupby("study").size().sort_values(ascending=False).head())

# %% [markdown]
# ## One claim by hand
#
# Standard dropout raises the training loss on text. A paired difference needs two runs with one
# seed: one of each arm.

# %%
text = runs[(runs["study"] == "text") & (runs["state"] == "finished")]
loss = text.pivot_table(
    index="seed", columns="config/schedule.name", values="final/train_eval/loss"
)
difference = (loss["constant"] - loss["none"]).dropna()
print(f"{difference.mean():+.3f} on average over {len(difference)} seeds")
print(f"{(difference > 0).sum()} of {len(difference)} seeds have a higher loss with dropout")

# %% [markdown]
# ## The verdicts
#
# `earlydrop-findings` tests every claim that stands in `conf/claims/` and writes the tables and
# figures again. `earlydrop-findings --repeat F6` trains a claim's arms on seeds that nothing has
# used, and judges those.

# %%
table = pd.read_csv(results_folder() / "findings" / "table.csv")
print(table[["claim", "study", "verdict"]].head(12).to_string(index=False))
