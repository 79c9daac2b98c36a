"""LLaMA-Factory's keys without a counterpart (src/llamafactory/hparams, version 0.9.5).

They include the arguments of transformers' Trainer, which LLaMA-Factory passes on.
"""

from study.integrations.configs.notes import Keys, because, names

_BASE = "the base is loaded as transformers loads it"
_TOKENIZER = "the base's own tokenizer is used"
_ADAPTERS_ONLY = "only adapters are trained"
_PLAIN_LOSS = "the mean cross entropy of the targets is trained"
_ONE_DEVICE = "one device: with n GPUs, a step of LLaMA-Factory has n times as many rows"
_OPTIMIZER = "the optimizer has the options of its file in conf/optimizer"

TOP = Keys(
    instead=because("plain LoRA is trained", "use_dora kt_use_lora_experts")
    | because(_ADAPTERS_ONLY, "additional_target use_llama_pro freeze_language_model")
    | because(
        "adapters start from their init",
        "adapter_name_or_path adapter_folder create_new_adapter resume_from_checkpoint",
    )
    | because("learning rates are one for A and one for B", "loraplus_lr_embedding")
    | because("the loss is on targets only", "train_on_prompt")
    | because("the loss is on all turns of the assistant", "mask_history")
    | because("one example per row, so steps hold fewer tokens", "packing neat_packing")
    | because("only the first data set is read", "mix_strategy interleave_probs")
    | because("rows are read from the data set itself", "tokenized_path streaming")
    | because("rows are always shuffled", "disable_shuffling")
    | because("rows are shuffled", "train_sampling_strategy group_by_length sortish_sampler")
    | because("the last batch is completed with rows of the next epoch", "dataloader_drop_last")
    | because("the batch is not adapted to the memory", "auto_find_batch_size")
    | because("rows are ordered by data.seed, which is the seed", "data_seed")
    | because("the template has its own system message", "default_system")
    | because("the chat template decides", "enable_thinking preserve_thinking tool_format")
    | because(
        "text only",
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches video_max_pixels "
        "video_min_pixels video_fps video_maxlen use_audio_in_video audio_sampling_rate media_dir",
    )
    | because("only the language model's layers have adapters", "freeze_vision_tower")
    | because("only the language model's layers have adapters", "freeze_multi_modal_projector")
    | because(
        _TOKENIZER,
        "resize_vocab split_special_tokens add_tokens add_special_tokens "
        "new_special_tokens_config init_special_tokens use_fast_tokenizer",
    )
    | because(
        _BASE,
        "model_revision rope_scaling shift_attn mixture_of_depths moe_aux_loss_coef "
        "upcast_layernorm upcast_lmhead_output train_from_scratch trust_remote_code",
    )
    | because(
        "model.quant_bits quantises the base's block linears with bitsandbytes",
        "quantization_method quantization_type double_quantization kt_weight_path "
        "kt_expert_checkpoint_path kt_non_expert_weight_path use_kt kt_config",
    )
    | because("precision=float32 computes in float32", "fp16")
    | because("adapter weights are float32", "pure_bf16")
    | because("no 8-bit arithmetic", "fp8 fp8_backend fp8_enable_fsdp_float8_all_gather")
    | because("no noise is added", "neftune_noise_alpha")
    | because(
        _PLAIN_LOSS,
        "use_dft_loss use_asft_loss use_eaft_loss label_smoothing_factor "
        "ignore_pad_token_for_loss compute_loss_func",
    )
    | because(
        _OPTIMIZER,
        "optim_args optim_target_modules use_galore use_apollo use_badam use_adam_mini use_muon",
    )
    | because(
        "the schedule of transformers is used, from learning_rate to 0", "lr_scheduler_kwargs"
    )
    | because("training goes on to the last step", "early_stopping_steps")
    | because("the weights of the last step are kept", "load_best_model_at_end")
    | because(_ONE_DEVICE, "deepspeed fsdp fsdp_config use_mca use_hyper_parallel")
    | because(_ONE_DEVICE, "ray_num_workers parallelism_config")
    | because("training is plain transformers", "use_unsloth"),
    plain={
        "ignore_pad_token_for_loss": True,
        "freeze_vision_tower": True,
        "freeze_multi_modal_projector": True,
        "use_fast_tokenizer": True,
        "double_quantization": True,
        "quantization_method": "bnb",
        "quantization_type": "nf4",
        "model_revision": "main",
        "init_special_tokens": "noise_init",
        "mix_strategy": "concat",
        "train_sampling_strategy": "random",
    },
    inert=names(
        """
        do_train do_eval do_predict output_dir overwrite_output_dir overwrite_cache run_name project
        cache_dir low_cpu_mem_usage offload_folder print_param_status hf_hub_token ms_hub_token
        om_hub_token infer_backend infer_dtype use_kv_cache
        flash_attn enable_liger_kernel use_liger_kernel liger_kernel_config use_v1_kernels
        use_unsloth_gc disable_gradient_checkpointing use_reentrant_gc gradient_checkpointing
        gradient_checkpointing_kwargs activation_checkpointing activation_checkpointing_kwargs
        torch_compile torch_compile_backend torch_compile_mode torch_empty_cache_steps use_cache
        quantization_device_map tf32 bf16_full_eval fp16_full_eval full_determinism
        average_tokens_across_devices accelerator_config ignore_data_skip
        restore_callback_states_from_checkpoint use_cpu local_rank
        preprocessing_batch_size preprocessing_num_workers buffer_size data_shared_file_system
        dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
        dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
        remove_unused_columns label_names length_column_name
        ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
        ddp_backend ddp_timeout master_addr master_port ray_init_kwargs ray_run_name
        ray_storage_path resources_per_worker placement_strategy hyper_parallel_args
        eval_dataset eval_on_each_dataset eval_num_beams eval_strategy eval_steps eval_delay
        eval_on_start eval_do_concat_batches eval_use_gather_object eval_accumulation_steps
        per_device_eval_batch_size prediction_loss_only include_for_metrics batch_eval_metrics
        compute_accuracy predict_with_generate generation_max_length generation_num_beams
        generation_config do_sample temperature top_p top_k num_beams max_length max_new_tokens
        repetition_penalty length_penalty skip_special_tokens metric_for_best_model
        greater_is_better
        save_only_model save_strategy save_steps save_on_each_node save_total_limit
        enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
        hub_always_push hub_revision
        logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter
        logging_dir include_num_input_tokens_seen include_tokens_per_second
        include_effective_tokens_per_second log_level log_level_replica disable_tqdm report_to
        trackio_space_id trackio_bucket_id trackio_static_space_id plot_loss debug
        skip_memory_metrics use_swanlab swanlab_project swanlab_workspace swanlab_run_name
        swanlab_mode swanlab_api_key swanlab_logdir swanlab_lark_webhook_url swanlab_lark_secret
        enable_torch_profiler profiler_output_dir profiler_wait_steps profiler_warmup_steps
        profiler_active_steps profiler_repeat profiler_record_shapes profiler_profile_memory
        profiler_with_stack profile_modules
        kt_lora_expert_num kt_lora_expert_intermediate_size kt_cpu_activation
        pissa_iter pissa_convert asft_alpha eaft_alpha
        freeze_trainable_layers freeze_trainable_modules freeze_extra_modules
        module_dropout oft_rank oft_block_size oft_target
        galore_target galore_rank galore_update_interval galore_scale galore_proj_type
        galore_layerwise apollo_target apollo_rank apollo_update_interval apollo_scale apollo_proj
        apollo_proj_type apollo_scale_type apollo_layerwise apollo_scale_front badam_mode
        badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio
        badam_mask_mode badam_verbose
        export_size export_device export_quantization_bit export_quantization_dataset
        export_quantization_nsamples export_quantization_maxlen export_legacy_format
        export_hub_model_id vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank
        vllm_config sglang_maxlen sglang_mem_fraction sglang_tp_size sglang_config
        sglang_lora_backend
        pref_beta pref_ftx pref_bco_weight pref_loss dpo_label_smoothing kto_chosen_weight
        kto_rejected_weight simpo_gamma ppo_buffer_size ppo_epochs ppo_score_norm ppo_target
        ppo_whiten_rewards ref_model ref_model_adapters ref_model_quantization_bit reward_model
        reward_model_adapters reward_model_quantization_bit reward_model_type ld_alpha
        """
    ),
)
"""Options of another stage, method or optimizer act only with the key that chooses it, and that
key is refused or noted."""

DATASET = Keys(
    instead=because("all rows are read", "num_samples")
    | because("the folder of the data set is not read apart", "folder")
    | because("preferences are not trained on", "ranking"),
    inert=frozenset({"ms_hub_url", "om_hub_url"}),
)
"""Keys of an entry of ``dataset_info.json``."""
COLUMNS = Keys(
    instead=because("text only", "images videos audios")
    | because("the first turn has no history", "history")
    | because("preferences are not trained on", "chosen rejected kto_tag")
    | because("a conversation's system message is read from the field system", "system"),
    inert=frozenset({"tools"}),
)
"""Keys of its ``columns``."""
