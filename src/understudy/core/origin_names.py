"""What options of other libraries are called here, for messages about unknown options.

Made from the tables of docs/coming-from.md by `UPDATE_DOCS=1 python -m pytest tests/test_docs.py`.
"""

from __future__ import annotations

_TEXT = """\
ExpertActionSensor: AdvisorConfig.labels; ExpertPolicySensor: AdvisorConfig.labels; action_bound_method:
policy.action_bound; action_labels_from_sample: TeacherConfig.label; action_scaling: policy.action_scaling;
activation: policy.activation RandomNetworkDistillationConfig.activation; activation_fn: policy.activation; actor:
policy.hidden_sizes policy.actor_groups; actor_hidden_dims: policy.hidden_sizes; advantage_normalization:
ppo.advantage_normalization; allow_variable_horizon: GailConfig.absorbing_states; alpha_scheduler:
AdvisorConfig.alpha; amp_obs_shape: MotionPriorConfig.frames; batch_size: BehaviorCloningConfig.batch_size
ppo.minibatches; beta_schedule: offline.dagger.beta; bounds_loss_coef: policy.action_bound; buffer_dilation_ratio:
TeacherConfig.rollouts; central_value_config: policy.critic_groups; check_for_nan: ppo.on_nonfinite;
checkpoint_interval: checkpoint.interval; class_name: policy.distribution.kind; clip_decay: ppo.clip_epsilon;
clip_epsilon: ppo.clip_epsilon; clip_min_std: policy.distribution.min_std; clip_obs: policy.observation_clip;
clip_param: ppo.clip_epsilon; clip_range: ppo.clip_epsilon; clip_range_vf: ppo.value_clip; clip_reward:
ppo.reward_clip; clip_value: ppo.value_clip; cnn_cfg: policy.encoder.cnn; collect_transition_from_dataset:
BehaviorCloningConfig.demonstrations; critic: policy.critic_hidden_sizes policy.critic_groups; critic_coef:
ppo.value_coef; critic_coeff: ppo.value_coef; critic_encoder_component_names: policy.critic_encoder
policy.shared_trunk; critic_encoder_kwargs: policy.critic_encoder; critic_hidden_dims: policy.critic_hidden_sizes;
dagger_loss_coef: TeacherConfig.coef; debug_use_ground_truth: ppo.reward_weight; demo_batch_size:
DiscriminatorConfig.batch_size; demonstrations: BehaviorCloningConfig.demonstrations GailConfig.demonstrations
AirlConfig.demonstrations; desired_kl: ppo.desired_kl; deterministic: evaluation.deterministic; deterministic_eval:
evaluation.deterministic; disc_net: GailConfig.discriminator; disc_opt_cls: DiscriminatorConfig.optimizer;
disc_opt_kwargs: DiscriminatorConfig.optimizer; disc_optim: DiscriminatorConfig.optimizer; disc_update_num:
DiscriminatorConfig.disc_update_num; discount_factor: ppo.gamma; discriminator_batch_size:
DiscriminatorConfig.batch_size; discriminator_grad_pen: DiscriminatorConfig.gradient_penalty;
discriminator_gradient_penalty_scale: DiscriminatorConfig.gradient_penalty; discriminator_logit_regularization_scale:
DiscriminatorConfig.logit_regularizer; discriminator_weight_decay_scale: DiscriminatorConfig.optimizer; dist_fn:
policy.distribution.kind; distill_latent_coef: TeacherConfig.latent_coef; distill_latent_obs_component_mapping:
TeacherConfig.latents; distill_latent_target: TeacherConfig.latent_target; distill_target: TeacherConfig.target;
distillation_loss_coef: TeacherConfig.coef; dual_clip: ppo.dual_clip; e_clip: ppo.clip_epsilon;
empirical_normalization: policy.normalize_observations; enable_critic_lstm: policy.critic_memory; encoder_class_name:
policy.encoder.kind; encoder_component_names: policy.encoder.only; encoder_kwargs: policy.encoder;
encoder_output_size: policy.encoder.hidden_sizes; ensure_same_init_aux_weights: AdvisorConfig.aux_init; ent_coef:
ppo.entropy_coef; ent_weight: BehaviorCloningConfig.entropy_coef; entropy_coef: ppo.entropy_coef; entropy_coeff:
ppo.entropy_coef; entropy_loss_scale: ppo.entropy_coef; env: env.id; env_name: env.id; eps_clip: ppo.clip_epsilon;
estimator_kwargs: EstimatorHeadConfig.hidden_sizes; estimator_loss_coef: EstimatorConfig.coef; estimator_loss_func:
EstimatorConfig.loss; estimator_loss_kwargs: EstimatorConfig.loss_kwargs; estimator_obs_components:
EstimatorHeadConfig.inputs; estimator_target_components: EstimatorHeadConfig.targets; eval_freq: evaluation.interval;
expert_buffer: GailConfig.demonstrations; expert_policy: offline.dagger.expert; expert_sensor:
ScriptedExpertConfig.labels offline.dagger.expert; features_extractor_class: policy.trunk; features_extractor_kwargs:
policy.trunk_kwargs; fixed_alpha: AdvisorConfig.alpha; fixed_bound: AdvisorConfig.bound; fixed_sigma:
policy.distribution.state_dependent_std; gae_lambda: ppo.gae_lambda; games_num: evaluation.episodes; gamma: ppo.gamma;
gen_algo: ppo; gen_replay_buffer_capacity: DiscriminatorConfig.replay_size; gen_train_timesteps: ppo.num_steps;
grad_norm: ppo.optimizer.max_grad_norm; grad_norm_clip: ppo.optimizer.max_grad_norm; gradient_length: ppo.num_steps;
hidden_dims: DiscriminatorConfig.hidden_sizes policy.hidden_sizes policy.critic_hidden_sizes;
hidden_state_resample_prob: TeacherConfig.resample_state_prob; horizon_length: ppo.num_steps; init_noise_std:
policy.distribution.init_std; init_obs_norm: policy.normalize_observations; init_std: policy.distribution.init_std;
kl_threshold: ppo.target_kl ppo.desired_kl; l2_weight: BehaviorCloningConfig.l2_coef; label_action_with_critic_obs:
TeacherConfig.groups; lam: ppo.gae_lambda; layers: policy.memory_layers; learn_std: policy.distribution.learn_std;
learning_epochs: ppo.epochs; learning_rate: ppo.optimizer.learning_rate RandomNetworkDistillationConfig.optimizer;
learning_rate_scheduler: ppo.lr_scheduler ppo.desired_kl; learning_rate_scheduler_kwargs: LRSchedulerConfig.options;
load_path: start_from; log_std_init: policy.distribution.init_std; logger: logging.tensorboard logging.wandb
logging.loggers; loss_critic_type: ppo.loss_critic_type; loss_type: TeacherConfig.target; lr_schedule: ppo.desired_kl
ppo.optimizer.learning_rate; lr_scheduler: offline.lr_scheduler ppo.lr_scheduler LRSchedulerConfig.options;
lr_scheduler_class_name: LRSchedulerConfig.name; lstm_hidden_size: policy.memory_size; max_epochs: total_steps;
max_grad_norm: ppo.optimizer.max_grad_norm ppo.clip_apart; max_iterations: total_steps; mimic_loss_coef:
MotionPriorConfig.tracking_weight; mini_batches: ppo.minibatches; mini_epochs: ppo.epochs; minibatch_size:
ppo.minibatches; mirror_loss_coeff: SymmetryConfig.mirror_coef; mixed_precision: policy.precision; mu_activation:
policy.distribution.mean_activation; n_disc_updates_per_round: DiscriminatorConfig.disc_update_num; n_envs:
env.num_envs; n_epochs: ppo.epochs; n_eval_episodes: evaluation.episodes; n_lstm_layers: policy.memory_layers;
n_steps: ppo.num_steps; name: policy.memory; net_arch: policy.hidden_sizes policy.critic_hidden_sizes; norm_obs:
policy.normalize_observations; norm_reward: ppo.reward_normalization; normalize_advantage:
ppo.advantage_normalization; normalize_advantage_per_mini_batch: ppo.advantage_normalization; normalize_input:
policy.normalize_observations; normalize_value: ppo.value_normalization; num_actors: env.num_envs;
num_learning_epochs: ppo.epochs; num_mini_batches: ppo.minibatches; num_outputs:
RandomNetworkDistillationConfig.num_outputs; num_steps_per_env: ppo.num_steps; obs_normalization:
policy.normalize_observations; obs_segments: env.segments; observation_preprocessor: policy.normalize_observations;
optim: ppo.optimizer offline.learning_rate; optimizer: ppo.optimizer.kind; optimizer_class: ppo.optimizer.kind;
optimizer_class_name: ppo.optimizer.kind; optimizer_cls: ppo.optimizer.kind; optimizer_kwargs: ppo.optimizer
offline.learning_rate; ortho_init: policy.init; predictor_hidden_dims:
RandomNetworkDistillationConfig.predictor_hidden_sizes; privileged_obs_segments: env.segments policy.critic_groups;
ratio_clip: ppo.clip_epsilon; recompute_advantage: ppo.recompute_advantage; ref_motion:
MotionPriorConfig.expert_observations; ref_obs: MotionPriorConfig.observations; replace_state_prob:
EstimatorHeadConfig.replace_prob EstimatorHeadConfig.feeds_actor; reward_net: GailConfig.discriminator
AirlConfig.discriminator; reward_normalization: ppo.value_normalization
RandomNetworkDistillationConfig.normalize_reward; reward_threshold: stop_when; rewards_shaper: ppo.reward_weight;
rl_loss: ppo.surrogate; rnd_state: RandomNetworkDistillationConfig.observations; rnn_hidden_dim: policy.memory_size;
rnn_hidden_size: policy.memory_size; rnn_num_layers: policy.memory_layers; rnn_type: policy.memory; rollouts:
ppo.num_steps; run_name: run_dir; samples_mc_entropy: ppo.samples_mc_entropy; save: checkpoint; save_freq:
checkpoint.interval; save_frequency: checkpoint.interval; save_interval: checkpoint.interval; scale_value:
ppo.reward_weight; schedule: ppo.desired_kl; score_to_win: stop_when; scratch_dir: run_dir; separate:
policy.shared_trunk; seq_length: ppo.num_steps; share_cnn_encoders: policy.shared_trunk; share_features_extractor:
policy.shared_trunk; sigma_init: policy.distribution.init_std; smooth_expert_weight_decay:
AdvisorConfig.smooth_expert_weight_decay; state_normalization: RandomNetworkDistillationConfig.normalize_observations;
state_preprocessor: policy.normalize_observations; std_range: policy.distribution.min_std policy.distribution.max_std;
std_type: policy.distribution.std_type; student: policy.actor_groups; style_reward_coef:
MotionPriorConfig.reward_weight; style_reward_scale: MotionPriorConfig.reward_weight; target_hidden_dims:
RandomNetworkDistillationConfig.target_hidden_sizes; task_reward_lerp: ppo.reward_weight
MotionPriorConfig.reward_weight; task_reward_scale: ppo.reward_weight; tau: ppo.gae_lambda; teacher:
TeacherConfig.groups; teacher_act_prob: TeacherConfig.teacher_forcing; teacher_policy: TeacherConfig.checkpoints;
tensorboard_log: logging.tensorboard run_dir; torch_compile_mode: ppo.capture; truncate_grads:
ppo.optimizer.max_grad_norm; units: policy.hidden_sizes policy.memory_size; use_actor_rnn: EstimatorHeadConfig.memory;
use_clipped_value_loss: ppo.value_clip; use_data_augmentation: SymmetryConfig.augmentation_coef; use_mirror_loss:
SymmetryConfig.mirror_coef; using_ppo: ppo.surrogate_coef ppo.value_coef ppo.entropy_coef; value_clip: ppo.value_clip;
value_loss_coef: ppo.value_coef; value_loss_scale: ppo.value_coef; value_preprocessor: ppo.value_normalization; venv:
env; vf_coef: ppo.value_coef; visual_component_name: policy.actor_groups; visual_kwargs: policy.encoder.cnn;
visual_latent_size: policy.encoder.cnn.hidden_sizes; wandb: logging.wandb; weight:
RandomNetworkDistillationConfig.reward_weight; weight_schedule: RandomNetworkDistillationConfig.reward_weight
"""

ORIGIN_NAMES = {
    name: tuple(paths.split())
    for name, _, paths in (" ".join(entry.split()).partition(": ") for entry in _TEXT.split(";"))
}
"""Their name -> paths in a training's config, and `Class.option` of parts' configs."""

_NOWHERE = """\
action_space: read from the environment | amp_batch_size: windows of the whole library are drawn for every step |
amp_obs_dim: `frames` times the style features, from the spaces | best_model_save_path: always `checkpoints/best.pt` |
critic_encoder_class_name: by the component's shape | demo_minibatch_size: no accumulation of gradients |
discriminator_loss_coef: the discriminator has its own optimizer, clip and number of steps:
`us.parts.MotionPriorConfig(discriminator=)`. A common factor would change nothing; 0 is refused |
discriminator_loss_scale: an optimizer of its own: a common factor would change nothing | entropy_method_name: every
distribution has `entropy`; without a closed form it is sampled | forward: a part stores what it needs (`us.Labels`);
in the layer a subclass returns it as there | functional: modules are used as they are, so DDP and FSDP work on them |
input_dim: `frames` times the style features, from the spaces | log_explained_variance: always logged, a scalar, 0 for
constant targets | max_batchsize: values are computed in chunks of one minibatch | normalize_images: uint8 images are
always divided by 255, floats never | num_actions: read from the action space | num_actor_obs: read from the
observation space | num_critic_obs: read from the observation space | observation_space: read from the environment
(unused there) | rollout_buffer_class: one rollout of named tensors | rollout_buffer_kwargs: one rollout of named
tensors | save_best_after: `checkpoints/best.pt` of every evaluation | sde_sample_freq: noise is independent in every
step; a memory or `init_std` explores instead | smoothed_loss: unsmoothed numbers in `metrics.jsonl`; `understudy
plot` smooths | stats_window_size: `episode/return` is of the episodes that ended in the iteration |
teacher_policy_class_name: a checkpoint knows its own networks | time_limit_bootstrap: always, from the episode's true
final observation | training: a policy has no modes; the layer has both, and `is_within_training_step` | updating: a
policy has no modes; the layer has both, and `is_within_training_step` | use_sde: noise is independent in every step;
a memory or `init_std` explores instead | value_bootstrap: always, from the true final observation; theirs adds gamma
V(s_t) of the step before
"""

NO_COUNTERPART = {
    name: why for name, _, why in (entry.partition(": ") for entry in " ".join(_NOWHERE.split()).split(" | "))
}
"""Their name -> why there is no such option here, or what there is instead."""
