"""What leakguard costs, measured beside what people use instead."""
