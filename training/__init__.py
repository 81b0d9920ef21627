"""BERT pre-training and fine-tuning on DeepSpeed ZeRO: Arrow examples in, Hugging Face directories out."""
