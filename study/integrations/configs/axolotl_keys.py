"""The keys of Axolotl's schema (src/axolotl/utils/schemas, version 0.19) without a counterpart."""

from study.integrations.configs.notes import Keys, because, names

_ONE_DEVICE = "one device: with n GPUs, a step of Axolotl has n times as many rows"
_PLAIN_LOSS = "the mean cross entropy of the targets is trained"
_BASE = "the base is loaded as transformers loads it"
_TOKENIZER = "the base's own tokenizer is used"
_ADAPTERS_ONLY = "only adapters are trained"
_SCHEDULE = "the schedule of transformers is used, from learning_rate to 0"
_BASE_BITS = "model.quant_bits quantises the base's block linears with bitsandbytes"

TOP = Keys(
    instead=because("plain LoRA is trained", "use_mora mora")
    | because(
        _ADAPTERS_ONLY,
        "lora_modules_to_save unfrozen_parameters peft_trainable_token_indices embedding_lr "
        "embedding_lr_scale fix_untrained_tokens lisa_n_layers lisa_step_interval",
    )
    | because("adapters start from their init", "lora_model_dir resume_from_checkpoint")
    | because("one rank for all layers", "lora_rank_pattern")
    | because("one alpha for all layers", "lora_alpha_pattern")
    | because("all layers", "peft_layers_to_transform peft_layers_pattern")
    | because("the base keeps its layers", "peft_layer_replication")
    | because("adapter weights are float32", "peft_autocast_adapter_dtype")
    | because("adapters are not merged while they train", "relora relora_prune_ratio")
    | because("the adapter is not quantised", "nvfp4_merge_aware nvfp4_merge_aware_start_step qat")
    | because(
        "one example per row, so steps hold fewer tokens", "sample_packing max_packed_sequence_len"
    )
    | because("examples are not joined", "pretraining_sample_concatenation")
    | because("the loss is on targets only", "train_on_inputs")
    | because(
        "rows are shuffled", "group_by_length curriculum_sampling sample_packing_sequentially"
    )
    | because("rows are shuffled once, all together", "shuffle_before_merging_datasets")
    | because("rows are always shuffled", "shuffle_merged_datasets")
    | because("only the first of datasets is trained on", "pretraining_dataset")
    | because("all rows are kept", "dataset_exact_deduplication min_sample_len")
    | because("the whole file is read", "dataset_shard_num dataset_shard_idx streaming")
    | because("longer rows are cut", "use_pose excess_length_strategy")
    | because("the last batch is completed with rows of the next epoch", "dataloader_drop_last")
    | because("the batch is not adapted to the memory", "auto_find_batch_size")
    | because("the template gets no arguments", "chat_template_kwargs")
    | because("the template has its own system message", "default_system_message")
    | because("the chat template ends a turn", "eot_tokens role_boundaries")
    | because("text only", "processor_type processor_kwargs image_size image_resize_algorithm")
    | because(
        _TOKENIZER,
        "tokenizer_config tokenizer_use_mistral_common tokenizer_use_fast tokenizer_legacy tokens "
        "added_tokens_overrides",
    )
    | because(
        _BASE,
        "revision_of_model model_revision base_model_config cls_model_config model_config "
        "overrides_of_model_config model_kwargs overrides_of_model_kwargs trust_remote_code "
        "reinit_weights scaling_softmax scaling_softmax_factor scaling_softmax_bias "
        "llama4_linearized_experts resize_token_embeddings_to_32x shrink_embeddings "
        "mean_resizing_embeddings use_onebitllms rope_scaling s2_attention",
    )
    | because(
        _BASE_BITS,
        "gptq gptq_disable_exllama bnb_config_kwargs model_quantization_config "
        "model_quantization_config_kwargs quantize_moe_experts quantization nonexpert_quantization "
        "dsv4_fp4_grouped_mode dsv4_fp8_nonexpert_mode gemma4_fp8_nonexpert gemma4_nf4_nonexpert "
        "llmcompressor",
    )
    | because("precision=float32 computes in float32", "fp16 float16 float32")
    | because("adapter weights are float32", "bfloat16")
    | because("no 8-bit arithmetic", "fp8 fp8_config")
    | because("the base's embedding has its own precision", "embeddings_skip_upcast")
    | because("the learning rate is one for A and one for B", "lr_groups loraplus_lr_embedding")
    | because(_SCHEDULE, "lr_scheduler_kwargs cosine_min_lr_ratio cosine_constant_lr_ratio")
    | because(
        _SCHEDULE,
        "lr_div_factor lr_quadratic_warmup jagged_restart_steps jagged_restart_warmup_steps "
        "jagged_restart_anneal_steps",
    )
    | because(
        "the optimizer has the options of its file in conf/optimizer",
        "optim_args optim_target_modules torchdistx_path adam_epsilon2 adam_beta3 dion_lr "
        "dion_momentum dion_rank_fraction dion_rank_multiple_of qgalore_rank "
        "qgalore_update_proj_gap qgalore_scale qgalore_proj_type qgalore_proj_quant "
        "qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj "
        "qgalore_queue_size grokfast_alpha grokfast_lamb",
    )
    | because("no noise is added", "neftune_noise_alpha noisy_embedding_alpha")
    | because(
        _PLAIN_LOSS,
        "use_eaft trainer_cls diffusion liger_use_token_scaling kd_trainer kd_ce_alpha kd_alpha "
        "kd_temperature kd_beta kd_normalize_topk kd_temperature_min kd_online_server "
        "kd_online_server_base_url kd_online_topk dense_mixer nemo_gym_enabled hatchery",
    )
    | because(
        "training goes on to the last step",
        "early_stopping_patience loss_watchdog_threshold loss_watchdog_patience",
    )
    | because("the weights of the last step are kept", "load_best_model_at_end")
    | because(
        _ONE_DEVICE, "deepspeed fsdp fsdp_config ddp dp_shard_size dp_replicate_size world_size"
    )
    | because(_ONE_DEVICE, "use_ray ray_num_workers")
    | because("all adapters are trained", "spectrum_top_fraction spectrum_model_name"),
    plain={"shuffle_merged_datasets": True, "peft_autocast_adapter_dtype": True},
    inert=names(
        """
        strict output_dir hub_model_id hub_strategy hub_revision save_safetensors
        push_dataset_to_hub hf_use_auth_token dataset_prepared_path skip_prepare_dataset
        num_dataset_shards_to_save dataset_processes dataset_num_proc dataset_keep_in_memory
        dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor
        remove_unused_columns accelerator_config device device_map local_rank
        ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters
        fsdp_version fsdp_final_state_dict_type fp8_enable_fsdp_float8_all_gather fp32_norms
        fp32_norm_classes deepcompile tensor_parallel_size context_parallel_size
        sequence_parallel_degree heads_k_stride ring_attn_func resources_per_worker ray_run_name
        expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes
        expert_parallel_num_rdma_bytes expert_parallel_token_capacity
        expert_parallel_fallback_on_unsupported qlora_sharded_model_loading
        max_memory gpu_memory_limit low_cpu_mem_usage experimental_skip_move_to_device
        lora_on_cpu lora_fan_in_fan_out merge_lora merge_method peft_ensure_weight_tying
        relora_prune_method relora_cpu_offload freeze_mm_modules lisa_layers_attribute
        model_type type_of_model tokenizer_type tokenizer_save_jinja_files
        is_falcon_derived_model is_llama_derived_model is_mistral_derived_model
        is_qwen_derived_model
        tf32 gradient_checkpointing gradient_checkpointing_kwargs selective_checkpointing
        activation_offloading layer_offloading ple_cpu_offload gc_steps torch_empty_cache_steps
        gc_collect_steps torch_compile torch_compile_backend torch_compile_mode
        torch_compile_options
        attn_implementation xformers_attention sdp_attention flex_attention
        flex_attn_compile_kwargs flash_attention flash_attn_cross_entropy flash_attn_rms_norm
        flash_attn_fuse_mlp flash_attn_fuse_qkv flash_optimum sage_attention eager_attention
        gemma4_hybrid_attn_impl large_head_attention flash_attn_d512 sdpa_varlen
        fused_attn_kernel experts_implementation lora_mlp_kernel lora_qkv_kernel lora_o_kernel
        lora_embedding_kernel chunked_cross_entropy chunked_cross_entropy_num_chunks tiled_mlp
        tiled_mlp_num_shards tiled_mlp_use_original_mlp use_kernels use_scattermoe use_sonicmoe
        use_dsv4_kernels use_glm_dsa_kernels dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel
        dsv4_bf16_all expert_backend moe_grouped_backend moe_dequant_chunk_size moe_bnb_fast
        cut_cross_entropy liger_rope liger_rms_norm liger_rms_norm_gated liger_layer_norm
        liger_swiglu liger_glu_activation liger_cross_entropy liger_fused_linear_cross_entropy
        liger_kernel_impl
        pad_to_sequence_len pad_to_multiple_of batch_flattening multipack_real_batches
        sample_packing_group_size sample_packing_bin_size sample_packing_mp_start_method
        sample_packing_eff_est eval_sample_packing pretrain_multipack_buffer_size
        pretrain_multipack_attn streaming_multipack_buffer_size pose_split_on_token_ids
        pose_max_context_len pose_num_chunks
        test_datasets eval_batch_size eval_sequence_len eval_steps evals_per_epoch eval_strategy
        evaluation_strategy eval_table_size eval_max_new_tokens do_causal_lm_eval
        eval_causal_lm_metrics do_bench_eval bench_dataset bench_split metric_for_best_model
        greater_is_better lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model
        generate_samples num_generation_samples generation_max_new_tokens generation_temperature
        generation_top_p generation_top_k generation_prompt_ratio generation_do_sample
        save_steps saves_per_epoch save_strategy save_total_limit save_first_step save_only_model
        auto_resume_from_checkpoints dynamic_checkpoint
        logging_steps profiler_steps profiler_steps_start include_tokens_per_second include_tkps
        debug use_tensorboard use_wandb wandb_name wandb_run_id wandb_mode wandb_project
        wandb_entity wandb_watch wandb_log_model use_mlflow mlflow_tracking_uri
        mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_comet comet_api_key
        comet_workspace comet_project_name comet_experiment_key comet_mode comet_online
        comet_experiment_config use_trackio trackio_project_name trackio_run_name
        trackio_space_id use_otel_metrics otel_metrics_host otel_metrics_port use_swanlab
        swanlab_project swanlab_experiment_name swanlab_description swanlab_mode
        swanlab_workspace swanlab_api_key swanlab_log_model swanlab_web_host swanlab_api_host
        swanlab_lark_webhook_url swanlab_lark_secret swanlab_log_completions
        swanlab_completion_log_interval swanlab_completion_max_buffer gradio_title gradio_share
        gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature
        trl vllm ebft rl_beta dpo_beta orpo_alpha rpo_alpha simpo_gamma cpo_alpha
        kto_desirable_weight kto_undesirable_weight dpo_use_weighting dpo_label_smoothing
        dpo_use_liger_kernel dpo_padding_free dpo_loss_type dpo_loss_weights dpo_norm_loss
        dpo_use_logits_to_keep dpo_generate_during_eval precompute_ref_log_probs
        center_rewards_coefficient num_labels max_prompt_len
        eaft_alpha eaft_k kd_online_timeout
        nemo_gym_dir nemo_gym_auto_clone nemo_gym_auto_start nemo_gym_config_paths
        nemo_gym_datasets nemo_gym_head_port nemo_gym_server_timeout nemo_gym_verify_timeout
        nemo_gym_run_timeout nemo_gym_model_name nemo_gym_multi_turn nemo_gym_max_turns
        is_preprocess preprocess_iterable total_num_tokens total_supervised_tokens
        axolotl_config_path
        """
    ),
)
"""Keys of the file. Options of preference training act only with ``rl``, which is refused."""

DATASET = Keys(
    instead=because("all rows are read", "shards shards_idx skip")
    | because("the newest revision is read", "revision")
    | because("rows are read as they are", "input_transform input_format drop_system_message")
    | because("the template is applied to role and content", "field_tools field_thinking")
    | because("the template is applied to role and content", "template_thinking_key split_thinking")
    | because(
        "the loss is on all turns of the assistant",
        "roles_to_train message_field_training message_field_training_detail",
    )
    | because("the loss includes the end of each of the assistant's turns", "train_on_eos")
    | because("the loss includes the end of each of the assistant's turns", "train_on_eot")
    | because("the mean cross entropy of the targets is trained", "logprobs_field temperature")
    | because("roles have their usual names", "roles field_human field_model")
    | because("the prompt's style is the usual one", "conversation")
    | because("a system message is read from the field system", "field_system"),
    plain={
        "field_system": "system",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
        "train_on_eot": "turn",
        "revision": "main",
    },
    inert=names(
        "preprocess_shards trust_remote_code field field_messages message_property_mappings "
        "message_field_role message_field_content"
    ),
)
"""Keys of an entry of ``datasets``. The names of fields are taken for the types that read them."""
PROMPT = Keys(
    instead=because("rows have no system message of their own", "field_system"),
    inert=frozenset({"system_format"}),
)
"""Keys of a type that names its fields."""

INERT_PLUGINS = frozenset(
    {
        *("CutCrossEntropyPlugin", "LigerPlugin", "KernelsPlugin", "ExpertParallelPlugin"),
        *("SwanLabPlugin", "LMEvalPlugin", "NormProbePlugin"),
    }
)
"""Plugins, by class, that change speed and reports only."""
