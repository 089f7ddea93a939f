"""What is measured on networks, for both papers: accuracy, attacks, few-shot episodes, how two models differ."""
